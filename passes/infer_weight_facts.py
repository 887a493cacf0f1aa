"""Measure every constant.

get_attr weight      →      get_attr weight {fact: 10% nonzero, 2:4, 8x1 blocks 12%, 3 dead along 0}
"""

from sparsec.facts.propagation import forward
from sparsec.ir.forms import known_fact
from sparsec.ir.pipeline import Context, Editor, Form, Pass


class InferWeightFacts(Pass):
    """The strongest fact of each constant: density, N:M, output blocks, dead rows and columns, range."""

    name = "infer_weight_facts"
    takes = Form.CAPTURED
    gives = Form.CAPTURED

    def apply(self, edit: Editor, context: Context) -> None:
        """Constants that serve as matrices or filters get a line in the story."""
        for node in edit.nodes():
            if node.op != "get_attr":
                continue
            edit.note(node, fact=forward(node))
            fact = known_fact(node)
            if node.meta["val"].dim() < 2:
                continue
            if fact.density < 1:
                edit.hit(node, str(fact))
            else:
                edit.miss(node, f"the values are {fact.reason}" if fact.reason else "no value is zero")
