# ruff: noqa: E501
"""Idioms on tokens [N, T, F], or series [N, C, L], on vectors [N, F] and on ids [N, T]."""

from tests.fuzz.emit import Idiom

_QKV = "$q, $k, $v = [[nn.Linear({F}, 3 * {F})]]({x}).reshape({x}.shape[0], {x}.shape[1], 3, «h:2|1|4», {F} // «h»).permute(2, 0, 3, 1, 4)«.unbind(0)|»"
_JOIN = "$y = «|{x} + »[[nn.Linear({F}, {F})]]($o.transpose(1, 2).reshape({x}.shape[0], -1, {F}))"
_HEADS = "x.shape[2] % 4 == 0 and x.shape[1] < 70"
_SPLIT = ".view({x}.shape[0], -1, «h», {F} // «h»).transpose(1, 2)"
_MASK = "«None|[[buffer: torch.triu(torch.full(({T}, {T}), float('-inf')), 1)]]|[[buffer: torch.where((torch.arange({T})[:, None] - torch.arange({T})).abs() < 3, 0.0, float('-inf'))]]|[[nn.Parameter(torch.randn(1, «h», {T}, {T}))]]|[[buffer: torch.randn(1, «h», {T}, {T})]]|[[buffer: torch.randn({T}, {T}).tril() > -1]]»"
_BIAS = "$b = «[[nn.Parameter(torch.randn(1, «h:2|1|4», {T}, {T}))]]|[[buffer: torch.randn(1, «h:2|1|4», {T}, {T})]]|[[nn.Embedding(2 * {T}, «h:2|1|4»)]](torch.arange({T})[:, None] - torch.arange({T}) + {T}).permute(2, 0, 1)[None]»"
_BIASED = "$o = «F.scaled_dot_product_attention($q, $k, $v, attn_mask=$b)|(($q @ $k.mT) / 4 + $b).softmax(-1) @ $v»"

TOKENS = (
    Idiom("linear", "23", 7, ("$y = [[nn.Linear({F}, «{F}|8|16|32|64|5|1|2», bias=«True|False»)]]({x})",)),
    Idiom("same linear", "23", 3, ("$y = [[nn.Linear({F}, {F})]]({x})",)),
    Idiom("shared linear", "23", 1, ("$m = [[nn.Linear({F}, {F})]]", "$y = «$m($m({x}).relu())|$m({x}) + {x}|F.linear($m({x}), $m.weight.t())»")),
    Idiom("weight by itself", "23", 0.7, ("$y = «{x} @ [[nn.Parameter(torch.randn({F}, 8))]]|F.linear({x}, [[nn.Parameter(torch.randn(8, {F}))]])|torch.matmul({x}, [[nn.Parameter(torch.randn({F}, 8))]])|torch.einsum('...f,of->...o', {x}, [[nn.Parameter(torch.randn(8, {F}))]])»",)),
    Idiom("feed forward", "23", 2, ("$y = «|{x} + »[[nn.Linear({F} * 2, {F})]](«F.gelu|F.relu|F.silu|torch.tanh»([[nn.Linear({F}, {F} * 2)]](«{x}|[[nn.LayerNorm({F})]]({x})»)))",)),
    Idiom("gated feed forward", "23", 1, ("$y = [[nn.Linear({F}, {F})]](F.silu([[nn.Linear({F}, {F})]]({x})) * [[nn.Linear({F}, {F})]]({x}))",)),
    Idiom("layer norm", "23", 3, ("$y = [[nn.LayerNorm({F}«|, elementwise_affine=False»)]]({x})",)),
    Idiom("RMS norm", "23", 1, ("$y = «[[nn.RMSNorm({F})]]({x})|{x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-6) * [[nn.Parameter(torch.ones({F}))]]»",)),
    Idiom("batch norm of features", "23", 0.7, ("$y = [[nn.BatchNorm1d({x}.shape[1])]]({x})",)),
    Idiom("multi-head attention", "3", 3, ("$y, $w = [[nn.MultiheadAttention({F}, «2|1|4», batch_first=True)]]({x}, {x}, {x}, need_weights=«False|True»)", "$y = «$y|{x} + $y»"), _HEADS),
    Idiom("multi-head attention, padding", "3", 3, ("$y, $w = [[nn.MultiheadAttention({F}, «2|1|4», batch_first=True)]]({x}, {x}, {x}, key_padding_mask={M} == 0, need_weights=«False|True»)", "$y = «$y|{x} + $y»"), _HEADS),
    Idiom("scaled dot product", "3", 4, (_QKV, f"$o = F.scaled_dot_product_attention($q, $k, $v, attn_mask={_MASK})", _JOIN), _HEADS),
    Idiom("causal attention", "3", 1, (_QKV, "$o = F.scaled_dot_product_attention($q, $k, $v, is_causal=True)", _JOIN), _HEADS),
    Idiom("padded attention", "3", 3, (_QKV, "$o = F.scaled_dot_product_attention($q, $k, $v, attn_mask=({M} != 0)[:, None, None, :])", _JOIN), _HEADS),
    Idiom("attention by hand", "3", 3, (
        _QKV,
        f"$s = «$q @ $k.transpose(-2, -1) * 0.25|($q * 0.5) @ $k.mT|torch.einsum('bhqd,bhkd->bhqk', $q, $k) / 4» + «0.0|{_MASK.replace('None|', '0.0|').replace(' > -1', '')}»",
        "$o = $s.softmax(-1) @ $v", _JOIN,
    ), _HEADS),
    Idiom("padded attention by hand", "3", 2, (
        _QKV,
        "$s = ($q @ $k.mT / 4)«.masked_fill(({M} == 0)[:, None, None, :], float('-inf'))| + (1 - {M}[:, None, None, :].to({x}.dtype)) * -10000.0|.masked_fill(~({M} != 0)[:, None, None], torch.finfo({x}.dtype).min)»",
        "$o = F.softmax($s, dim=-1) @ $v", _JOIN,
    ), _HEADS),
    Idiom("single head", "3", 2, (
        "$q, $k, $v = [[nn.Linear({F}, 8)]]({x}), [[nn.Linear({F}, 8)]]({x}), [[nn.Linear({F}, «8|{F}»)]]({x})",
        "$y = «($q @ $k.transpose(1, 2) / 3).softmax(-1) @ $v|F.scaled_dot_product_attention($q, $k, $v)|torch.bmm(torch.softmax(torch.bmm($q, $k.mT), 2), $v)»",
    )),
    Idiom("bare attention", "3", 1, ("$y = «F.scaled_dot_product_attention({x}, {x}, {x})|({x} @ {x}.mT / 4).softmax(-1) @ {x}»",)),
    Idiom("chunked attention", "3", 1, (
        "$h = «h:2|1|4»",
        "$q, $k, $v = [[nn.Linear({F}, 3 * {F})]]({x}).«chunk(3, -1)|split({F}, 2)|tensor_split(3, -1)»",
        f"$q, $k, $v = $q{_SPLIT}, $k{_SPLIT}, $v{_SPLIT}",
        f"$o = F.scaled_dot_product_attention($q, $k, $v, attn_mask={_MASK})", _JOIN,
    ), _HEADS),
    Idiom("encoder layer", "3", 1.5, ("$y = [[nn.TransformerEncoderLayer({F}, «2|1», {F} * 2, batch_first=True, norm_first=«False|True», activation=«'relu'|'gelu'», dropout=«0.0|0.1»)]]({x}«|, src_key_padding_mask={M} == 0»)",), _HEADS),
    Idiom("attention twice with one bias", "3", 4, (
        _BIAS,
        _QKV.replace("h:2|1|4", "h"), _BIASED, _JOIN,
        _QKV.replace("h:2|1|4", "h").replace("{x}", "$y"), _BIASED, _JOIN.replace("{x}", "$y"),
    ), _HEADS),
    Idiom("cross attention", "3", 1, ("$y, $w = [[nn.MultiheadAttention({F}, «2|1», batch_first=True)]]({x}, {y}, {y})", "$y = $y"), "x.shape[2] % 4 == 0 and y.dim() == 3 and y.shape[2] == x.shape[2] and x.shape[0] == y.shape[0]", 2),
    Idiom("position", "3", 1.5, ("$y = {x} + «[[nn.Parameter(torch.randn(1, {T}, {F}))]]|[[nn.Embedding(64, {F})]](torch.arange({x}.shape[1]))|[[nn.Embedding({T}, {F})]](torch.arange({x}.shape[1]))|[[buffer: torch.randn({T} + 2, {F})]][torch.arange({x}.shape[1]) + 2]|[[buffer: torch.randn({T}, {F})]]»",)),
    Idiom("class token", "3", 1, ("$y = torch.cat(([[nn.Parameter(torch.randn(1, 1, {F}))]].expand({x}.shape[0], -1, -1), {x}), 1)",)),
    Idiom("class head", "3", 1.5, ("$y = [[nn.Linear({F}, «5|1»)]]({x}«[:, 0]|[:, -1]|.mean(1)|.max(1).values|.select(1, 0)|.amax(1)|.sum(1)»)",)),
    Idiom("question answering head", "3", 1.5, ("$a, $b = [[nn.Linear({F}, 2)]]({x}).«split(1, dim=-1)|chunk(2, -1)|unbind(-1)»", "$a, $b = «$a.squeeze(-1), $b.squeeze(-1)|$a, $b»")),
    Idiom("score of tokens", "3", 1, ("$y = [[nn.Linear({F}, «1|2»)]]({x})«.squeeze(-1)|[..., 0]|[..., :1].squeeze(-1)|.softmax(1)|.sigmoid()»",)),
    Idiom("pool of tokens", "3", 2, ("$y = {x}«.mean(1)|[:, 0]|.mean(dim=1, keepdim=True)|.max(1)[0]|[:, -1]|[:, :1]|.mean(-1)|.sum(1)»",)),
    Idiom("mean of valid tokens", "3", 1, ("$m = {M}.to({x}.dtype).unsqueeze(-1)", "$y = ({x} * $m).sum(1) / $m.sum(1)"), "True"),
    Idiom("mask of tokens", "3", 0.7, ("$y = {x}«.masked_fill(({M} == 0)[..., None], 0.0)| * {M}[:, :, None]»",)),
    Idiom("flattened tokens", "3", 2, ("$y = [[nn.Linear({T} * {F}, 5)]]({x}«.flatten(1)|.reshape({x}.shape[0], -1)|.transpose(1, 2).flatten(1)|.view({N}, -1)»)",), "x[0].numel() <= 2048"),
    Idiom("tokens to map", "3", 1.5, ("$y = {x}.transpose(1, 2)«.unsqueeze(-1)|.unsqueeze(2)|.reshape({x}.shape[0], {F}, -1, 1)»",)),
    Idiom("square map of tokens", "3", 2, ("$y = «{x}.mT.reshape({x}.shape[0], {F}, int({T}**0.5), int({T}**0.5))|{x}.reshape({N}, int({T}**0.5), int({T}**0.5), {F}).permute(0, 3, 1, 2)»",), "int(x.shape[1] ** 0.5) ** 2 == x.shape[1]"),
    Idiom("mixing of tokens", "3", 1, ("$y = «|{x} + »[[nn.Linear({T}, {T})]]({x}.transpose(1, 2)).transpose(1, 2)",)),
    Idiom("conv1d", "3", 1.5, ("$y = [[nn.Conv1d({x}.shape[1], «{x}.shape[1]|8», «3, padding=1|1|3, padding=1, groups={x}.shape[1]|2, stride=2»)]]({x})",)),
    Idiom("conv1d over tokens", "3", 1, ("$y = [[nn.Conv1d({F}, {F}, «3, padding=1|1|3, padding=1, groups={F}|5, padding=2»)]]({x}.transpose(1, 2)).transpose(1, 2)",)),
    Idiom("map without batch", "3", 2, ("$y = «F.max_pool2d({x}, 2)|F.max_pool2d({x}, 3, 1, 1)|F.max_pool2d({x}, (1, 2))|F.max_pool2d({x}, (2, 1))|F.avg_pool2d({x}, 2)|F.avg_pool2d({x}, 3, 1, 1)|F.adaptive_avg_pool2d({x}, «1|2|(1, 2)»)|[[nn.Conv2d({x}.shape[0], {x}.shape[0], 3, padding=1)]]({x})|[[nn.Conv2d({x}.shape[0], 8, 1)]]({x})|F.max_pool2d([[nn.Linear({F}, {F})]]({x}).relu(), 3, 1, 1)»",)),
    Idiom("series without batch", "2", 0.7, ("$y = «F.max_pool1d({x}, 2)|F.avg_pool1d({x}, 2)|F.max_pool1d({x}, 3, 1, 1)|F.adaptive_avg_pool1d({x}, 2)|[[nn.Conv1d({x}.shape[0], 4, 3, padding=1)]]({x})»",)),
    Idiom("pool1d", "3", 0.7, ("$y = «F.max_pool1d({x}, 2)|F.avg_pool1d({x}, 2)|F.adaptive_avg_pool1d({x}, 1)|F.adaptive_avg_pool1d({x}, 1).squeeze(-1)»",)),
    Idiom("recurrent", "3", 0.3, ("$y, $s = [[nn.«GRU|LSTM»({F}, 8, batch_first=True)]]({x})", "$y = $y")),
    Idiom("heads", "3", 0.7, ("$y = {x}.reshape({x}.shape[0], -1, 2, {F} // 2).«transpose(1, 2)|permute(0, 2, 1, 3)»",), "x.shape[2] % 2 == 0"),
    Idiom("vector gate", "2", 1, ("$y = {x} * [[nn.Linear({F}, {F})]]({x}).«sigmoid|tanh|relu»()",)),
    Idiom("vector views", "2", 1.5, ("$y = {x}«[:, None]|[:, :, None]|.unsqueeze(1)|.reshape({x}.shape[0], -1, 1, 1)|[:, :, None, None]|.unsqueeze(-1).expand(-1, -1, 4)|.view({N}, 1, -1)»",)),
    Idiom("vector to tokens", "2", 1, ("$y = {x}.«reshape({x}.shape[0], 2, -1)|unflatten(1, (-1, 2))|view({x}.shape[0], -1, 2)»",), "x.shape[1] % 2 == 0"),
    Idiom("normalised", "23", 0.5, ("$y = F.normalize({x}, dim=-1)",)),
    Idiom("embedding", "i", 20, ("$y = [[nn.Embedding(50, «16|8|32»)]]({x})",)),
    Idiom("embeddings", "i", 8, ("$y = [[nn.LayerNorm(«e:16|8»)]]([[nn.Embedding(50, «e»)]]({x}) + [[nn.Embedding(64, «e»)]](torch.arange({x}.shape[1], device={x}.device)))",)),
)  # fmt: skip
