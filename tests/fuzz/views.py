# ruff: noqa: E501
"""Idioms that fit values of any kind: views, arithmetic, writes in place, aliases, and what sends Dynamo another way."""

from tests.fuzz.emit import Idiom

_SAME = "x.shape == y.shape and x is not y"
_ALIKE = "x is not y and x.dim() == y.dim() and all(a == b or b == 1 for a, b in zip(x.shape, y.shape))"
_JOINED = "x.dim() == y.dim() and x.shape[0] == y.shape[0] and x.shape[2:] == y.shape[2:]"

VIEWS = (
    Idiom("activation", "234", 6, ("$y = «{x}.relu()|F.gelu({x})|F.silu({x})|F.relu6({x})|F.hardswish({x})|{x}.sigmoid()|{x}.tanh()|F.gelu({x}, approximate='tanh')|F.leaky_relu({x}, 0.1)|F.elu({x})|F.softplus({x})|F.hardsigmoid({x})|F.mish({x})|{x}.clamp(-1, 1)|[[nn.PReLU()]]({x})»",)),
    Idiom("scalar", "234", 2, ("$y = «{x} * 2|{x} + 1|{x} - 0.5|{x} / 4|1 - {x}|-{x}|{x}.abs()|{x} ** 2|{x}.square()|({x} * {x} + 1).sqrt()|{x}.exp() / 100|{x}.clamp_min(0)»",)),
    Idiom("python attribute", "234", 0.7, ("$y = {x} * [[value: 0.5]]",)),
    Idiom("gate", "234", 2, ("$y = {x} * {x}.sigmoid()",)),
    Idiom("split gate", "234", 1, ("$a, $b = {x}.chunk(2, «1|-1»)", "$y = $a * $b«|.sigmoid()»"), "x.shape[1] % 2 == 0"),
    Idiom("sum", "234", 8, ("$y = «{x} + {y}|{y} + {x}|({x} + {y}).relu()|torch.add({x}, {y})|{x} + 0.5 * {y}|torch.add({x}, {y}, alpha=2)»",), _SAME, 2),
    Idiom("difference", "234", 1, ("$y = «{x} - {y}|torch.maximum({x}, {y})|torch.lerp({x}, {y}, 0.3)|torch.where({x} > 0, {x}, {y})»",), _SAME, 2),
    Idiom("product", "234", 3, ("$y = {x} * {y}«|.sigmoid()|.relu()»",), _SAME, 2),
    Idiom("broadcast", "234", 2, ("$y = {x} «+|*» {y}",), _ALIKE, 2),
    Idiom("broadcast vector", "34", 1, ("$y = {x} «*|+» {y}«[:, :, None, None]|[:, None]|.unsqueeze(1)|[..., None]»",), "y.dim() == 2", 2),
    Idiom("concatenation", "234", 4, ("$y = torch.cat([{x}, {y}], 1)",), _JOINED, 2),
    Idiom("concatenation of features", "34", 1, ("$y = torch.cat(({x}, {y}), -1)",), "x.dim() == y.dim() and x.shape[:-1] == y.shape[:-1]", 2),
    Idiom("batched product", "34", 0.7, ("$y = torch.matmul({x}, {y}.transpose(-1, -2)) / 4",), "x.dim() == y.dim() and x.shape[:-2] == y.shape[:-2] and x.shape[-1] == y.shape[-1]", 2),
    Idiom("stack", "234", 1, ("$s = torch.stack([{x}, {y}], «1|0|2|-1»)", "$y = $s«.sum(1)|.flatten(1, 2)|.mean(0)|[:, 0]|»"), _SAME, 2),
    Idiom("chunk", "234", 2, ("$a, $b = {x}.«chunk(2, 1)|chunk(2, -1)|split({x}.shape[1] // 2, 1)|tensor_split(2, 1)»",)),
    Idiom("views together", "234", 0.7, ("$a, $b = «torch.broadcast_tensors({x}, {x}[:, :1])|torch.atleast_2d({x}, {x}[:, 0])|torch.meshgrid({x}.flatten()[:3], {x}.flatten()[:4], indexing='ij')»",)),
    Idiom("views unsaid", "34", 0.7, ("$y = «torch.einsum('...ij->...ji', {x})|torch.einsum('...ij->...ij', {x})|torch.unsafe_chunk({x}, 2, 1)[0]|{x}.unfold(1, 2, 2)[..., 0]|{x}.unfold(-1, 1, 1).squeeze(-1)»",), "x.shape[1] > 1"),
    Idiom("axes by name", "34", 0.7, ("$y = {x}.«movedim(1, -1)|swapaxes(1, -1)|sum_to_size({x}.shape)|view_as({x})|ravel().view({x}.shape)»",)),
    Idiom("unbind", "34", 1, ("$a, $b, *$c = {x}.unbind(«1|-1»)", "$y = «$a|$a + $b»")),
    Idiom("slice", "234", 3, ("$y = {x}[«:, :{x}.shape[1] // 2|:, 1:|:, ::2|..., :1|..., 1:|:, -1:|:, 0|..., 0|:, :, ::2|..., -1|:, None, 0»]",)),
    Idiom("slice of samples", "234", 1.5, ("$y = {x}«[:2]|[:1]|[-2:]|[:8]|[0:2, :1]|[:-1]|[1:]|[::2]|.narrow(0, 0, 1)|.split(2)[0]|.chunk(2)[-1]|[: len({x}) // 2]|[[0]]»",)),
    Idiom("number of samples", "234", 1.5, (
        "$n, $t = len({x}), [[buffer: torch.randn(64)]]", "$column = (-1, *[1] * ({x}.dim() - 1))",
        "$y = «{x} / $n|{x}.clamp(max=$n / 4)|{x} + $t[$n - 1]|{x} + $t[:$n].mean()|{x} * $t[:$n].view($column)|{x} + $t[$n // 2]|{x} + $t[{x}.shape[1] // 7]|{x} + torch.arange($n).view($column)|{x} * torch.ones($n).cumsum(0).view($column)|{x}[torch.arange($n)]|{x} + $t[:1].expand($n).view($column)»",
    )),
    Idiom("table kept between calls", "234", 1.5, ("$y = [[Kept('in_«dictionary|list|attribute|object|cache|property»', «-1|1|0»)]]({x})",)),
    Idiom("slice of a map", "4", 1, ("$y = {x}[«:, :, 1:, 1:|:, :, ::2, ::2|:, :, :-1|:, :, 0|..., 1:3|:, :, 0, 0»]",)),
    Idiom("transpose", "34", 2.5, ("$y = {x}.«transpose(1, 2)|transpose(-1, -2)|mT|permute(0, *range({x}.dim() - 1, 0, -1))»",)),
    Idiom("flatten", "34", 6, ("$y = {x}.«flatten(1)|flatten(2)|reshape({x}.shape[0], -1)|reshape({x}.shape[0], {x}.shape[1], -1)|contiguous().view({N}, -1)|flatten(1, 2)|flatten(-2)|reshape({x}.shape[0], -1, {x}.shape[-1])|reshape({x}.shape[0], -1, {x}.shape[1])»",)),
    Idiom("squeeze", "34", 3, ("$y = {x}.«squeeze(-1)|squeeze(1)|squeeze(2)|squeeze()|squeeze(-1).squeeze(-1)|squeeze((1, 2))»",), "1 in x.shape[1:] and x.squeeze().dim() >= 1"),
    Idiom("unsqueeze", "23", 1.5, ("$y = {x}.unsqueeze(«1|-1|2»)",)),
    Idiom("reshape halves", "34", 1, ("$y = {x}.reshape({x}.shape[0], 2, {x}.shape[1] // 2, *{x}.shape[2:]).«sum(1)|transpose(1, 2).flatten(1, 2)|mean(2)|flatten(2)»",), "x.shape[1] % 2 == 0"),
    Idiom("clone", "234", 0.5, ("$y = {x}.«clone()|contiguous()|detach()|to({x}.dtype)|float().to({x}.dtype)»",)),
    Idiom("order in memory", "4", 0.7, ("$y = {x}.«contiguous|to»(memory_format=torch.«channels_last|contiguous_format»)",)),
    Idiom("flip", "34", 0.5, ("$y = {x}.flip(«-1|1|(1, 2)»)",)),
    Idiom("softmax", "34", 1, ("$y = {x}.«softmax(-1)|softmax(1)|log_softmax(-1)»",)),
    Idiom("reduction", "34", 1, ("$y = {x}.«mean(1, keepdim=True)|sum(-1, keepdim=True)|amax(1)|mean(-1)|cumsum(1)|std(-1, keepdim=True)|norm(dim=-1)»",)),
    Idiom("expand", "34", 0.5, ("$y = {x}.mean(«1|2», keepdim=True).expand_as({x})",)),
    Idiom("gather", "34", 0.5, ("$y = {x}«[:, [[buffer: torch.tensor([0, 0])]]]|.index_select(1, [[buffer: torch.tensor([0])]])|[:, [0]]»",)),
    Idiom("constant", "234", 0.5, ("$y = {x} + «torch.ones_like({x})|{x}.new_zeros({x}.shape)|torch.full_like({x}, 0.5)|[[buffer: torch.randn({x}.shape[-1:])]]|[[buffer: torch.zeros({x}.shape[1:])]]»",)),
    Idiom("in place", "234", 2, ("{x}.«add_(1)|mul_(0.5)|relu_()|clamp_(min=0)|sub_(0.5)|tanh_()|neg_()|copy_({x} * 2)|fill_(0.5)»",), passes=True),
    Idiom("functional in place", "234", 1, ("$y = «F.relu({x}, inplace=True)|F.silu({x}, inplace=True)|[[nn.ReLU(inplace=True)]]({x})|F.hardswish({x}, inplace=True)|F.dropout({x}, 0.5, False, inplace=True)»",)),
    Idiom("in place sum", "234", 1.5, ("{x} «+=|*=|-=» {y}",), _SAME, 2, passes=True),
    Idiom("assignment", "234", 1.5, ("{x}[«:, 0|..., 0|:, :1|:, ::2|..., -1»] = «0.0|1.0»",), passes=True),
    Idiom("assignment of values", "34", 0.7, ("{x}[:, 0] = «{x}[:, -1].clone()|{x}[:, 0] * 2|{x}.mean(1)»",), passes=True),
    Idiom("view in place", "234", 1.5, ("$y = {x}«.flatten(1)|[:, :1]|.transpose(1, -1)|.view({x}.shape)|[:, 0]|[1:]»", "$y.«mul_(3)|add_(1)|relu_()|zero_()»", "$y = «$y|{x}»")),
    Idiom("break", "234", 0.7, ("torch._dynamo.graph_break()",), passes=True),
    Idiom("break and view", "234", 1, ("$y = {x}«.flatten(1)|[:, :1]|.view({x}.shape)|[1:]|.transpose(1, -1)»", "torch._dynamo.graph_break()", "$y.«mul_(3)|add_(1)|zero_()»", "$y = «{x}|$y»")),
    Idiom("break and write", "234", 0.7, ("$y = {x} * 2", "torch._dynamo.graph_break()", "$y.«mul_(3)|add_(1)»", "$y = $y + 1")),
    Idiom("branch on sizes", "234", 1.5, ("$y = {x}.relu() if {x}.shape[«0|1»] «> 2|== 1|% 2 == 0|< 4» else {x} + 1",)),
    Idiom("data-dependent branch", "234", 0.3, ("$y = {x} + 1 if {x}.sum() > 0 else {x} - 1",)),
)  # fmt: skip
