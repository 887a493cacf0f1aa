"""Passes of sparsec, and the pipeline: one explicit tuple, in order."""

from sparsec.ir.pipeline import Pass
from sparsec.passes.assign_layouts import AssignLayouts
from sparsec.passes.canonicalise_tokens import CanonicaliseTokens
from sparsec.passes.delete_dead_channels import DeleteDeadChannels
from sparsec.passes.fold_batchnorm import FoldBatchNorm
from sparsec.passes.fold_constants import FoldConstants
from sparsec.passes.fuse_attention import FuseAttention
from sparsec.passes.fuse_depthwise_pointwise import FuseDepthwisePointwise
from sparsec.passes.fuse_epilogue import FuseEpilogue
from sparsec.passes.group_regions import GroupRegions
from sparsec.passes.infer_activation_facts import InferActivationFacts
from sparsec.passes.infer_weight_facts import InferWeightFacts
from sparsec.passes.insert_token_pruning import InsertTokenPruning
from sparsec.passes.sink_views import SinkViews

PIPELINE: tuple[Pass, ...] = (
    # Simplify: CAPTURED → CAPTURED
    FoldConstants(),
    FoldBatchNorm(),
    # Recognise tokens: CAPTURED → CAPTURED
    CanonicaliseTokens(),
    FuseAttention(),
    SinkViews(),
    InsertTokenPruning(),
    # Know: CAPTURED → INFERRED
    InferWeightFacts(),
    InferActivationFacts(),
    # Shrink: INFERRED → INFERRED
    DeleteDeadChannels(),
    # Fuse: INFERRED → FUSED
    FuseEpilogue(),
    FuseDepthwisePointwise(),
    # Lay out: FUSED → LAID_OUT, then group: LAID_OUT → REGIONS
    AssignLayouts(),
    GroupRegions(),
)
