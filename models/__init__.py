"""Real architectures with seeded weights, magnitude pruning, and what is trained on data that ships with a package."""

from sparsec.models.bert import Bert, bert_base
from sparsec.models.count import Count, count
from sparsec.models.digits import DigitsResult, train_digits
from sparsec.models.digits_cnn import digits_cnn, pruned_digits_cnn
from sparsec.models.digits_vit import digits_vit, pruned_digits_vit
from sparsec.models.efficient import efficientnet_b0, mobilenet_v3_small
from sparsec.models.mobilenet_v1 import mobilenet_v1
from sparsec.models.mobilenet_v2 import mobilenet_v2
from sparsec.models.photographs import calibration_batch, sample_photographs
from sparsec.models.prune import as_sparse_parameters, calibrate_batchnorm, prunable_layers, prune
from sparsec.models.resnet import resnet50
from sparsec.models.vit import VisionTransformer, vit_s16
from sparsec.models.zoo import build, build_with_inputs

__all__ = [
    "Bert",
    "Count",
    "DigitsResult",
    "VisionTransformer",
    "as_sparse_parameters",
    "bert_base",
    "build",
    "build_with_inputs",
    "calibrate_batchnorm",
    "calibration_batch",
    "count",
    "digits_cnn",
    "digits_vit",
    "efficientnet_b0",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "prunable_layers",
    "prune",
    "pruned_digits_cnn",
    "pruned_digits_vit",
    "resnet50",
    "sample_photographs",
    "train_digits",
    "vit_s16",
]
