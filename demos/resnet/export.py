"""Write a trained network as a model that ``edl teacher`` hosts, and that takes raw images.

python export.py --network resnet50 --weights teacher/student.pdparams --classes 10 --out model
"""

import argparse

import data
import models

from edl.serving import export_model

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--network", required=True)
parser.add_argument("--weights", help="what paddle.save(net.state_dict(), FILE) wrote")
parser.add_argument("--classes", type=int, required=True)
parser.add_argument("--data", default="digits", help="what it was trained on, as for train.py")
parser.add_argument("--image-size", type=int, default=32)
parser.add_argument("--pdmodel", action="store_true", help="for Paddle Serving 0.9")
parser.add_argument("--out", required=True)
arguments = parser.parse_args()

network = models.load(arguments.network, arguments.classes, arguments.weights)
size = arguments.image_size
feeds = {"image": ((3, size, size), "float32")}
preprocess = {"image": data.normalisation(arguments.data)}
export_model(
    network, arguments.out, feeds, ["logits"], pdmodel=arguments.pdmodel, preprocess=preprocess
)
print(f"wrote {arguments.out}")
