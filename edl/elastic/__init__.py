"""Training whose ranks may be killed and started again, also more or fewer of them.

:class:`ElasticBatchSampler` shares an epoch between ranks from any sample on;
:class:`ElasticTraining` keeps where the training is, in checkpoints that all ranks write together.
Needs Paddle; knows nothing of teachers.
"""

from edl.elastic.checkpoints import Checkpoints
from edl.elastic.sampler import ElasticBatchSampler
from edl.elastic.training import ElasticTraining

__all__ = ["Checkpoints", "ElasticBatchSampler", "ElasticTraining"]
