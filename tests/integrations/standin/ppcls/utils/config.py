"""A config from a file, with overrides such as Global.epochs=3."""

import copy
import json


class AttrDict(dict):
    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__

    def __deepcopy__(self, memo):
        return AttrDict(copy.deepcopy(dict(self), memo))


def get_config(path, overrides=None, show=False):
    with open(path) as file:
        config = AttrDict(json.load(file))
    for override in overrides or []:
        where, _, value = override.partition("=")
        section, _, key = where.partition(".")
        config[section][key] = json.loads(value)
    return config
