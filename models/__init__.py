"""Real architectures with seeded weights, magnitude pruning, and what is trained on data that ships with a package."""

from sparsec.models.count import Count, count
from sparsec.models.digits import DigitsResult, train_digits
from sparsec.models.digits_cnn import digits_cnn, pruned_digits_cnn
from sparsec.models.efficient import efficientnet_b0, mobilenet_v3_small
from sparsec.models.mobilenet_v1 import mobilenet_v1
from sparsec.models.mobilenet_v2 import mobilenet_v2
from sparsec.models.photographs import calibration_batch, sample_photographs
from sparsec.models.prune import as_sparse_parameters, calibrate_batchnorm, prunable_layers, prune
from sparsec.models.zoo import build

__all__ = [
    "Count",
    "DigitsResult",
    "as_sparse_parameters",
    "build",
    "calibrate_batchnorm",
    "calibration_batch",
    "count",
    "digits_cnn",
    "efficientnet_b0",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "prunable_layers",
    "prune",
    "pruned_digits_cnn",
    "sample_photographs",
    "train_digits",
]
