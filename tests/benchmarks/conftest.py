import sys

from tests.support.processes import ROOT

sys.path.append(str(ROOT / "benchmarks"))
