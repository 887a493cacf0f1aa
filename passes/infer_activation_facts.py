"""Carry facts through the graph, forward to values and backward from their readers.

conv2d(x, W, b)  with W[2] = 0          →      channel 2 is constant b[2]      (forward)
conv2d(x, W, b)  with W[:, 3] = 0       →      channel 3 of x is unread here   (backward)
"""

from sparsec.facts.backward import all_channels
from sparsec.facts.forward import channel_values
from sparsec.facts.propagation import channels_read, forward
from sparsec.ir.forms import is_value
from sparsec.ir.pipeline import Context, Editor, Form, Pass


class InferActivationFacts(Pass):
    """Each value gets what is proved of it; channels that nobody reads are told."""

    name = "infer_activation_facts"
    takes = Form.CAPTURED
    gives = Form.INFERRED

    def apply(self, edit: Editor, context: Context) -> None:
        """Forward in order, then backward."""
        read = channels_read(edit.graph)
        for node in edit.nodes():
            if node.op not in ("placeholder", "call_function") or not is_value(node):
                continue
            edit.note(node, fact=forward(node))
            known, unread = channel_values(node), all_channels(node) - read[node]
            if known:
                edit.hit(node, f"{len(known)} of {len(all_channels(node))} channels are constant")
            if unread and node.op == "call_function":
                edit.hit(node, f"{len(unread)} of {len(all_channels(node))} channels are unread")
