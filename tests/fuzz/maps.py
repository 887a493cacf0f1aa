# ruff: noqa: E501
"""Idioms on maps [N, C, H, W]."""

from tests.fuzz.emit import Idiom

_WIDTH = "«o:8|16|32|12|24|{C}|5|1|64»"
_EVEN = "x.shape[1] % 2 == 0"

MAPS = (
    Idiom("conv", "4", 6, (f"$y = [[nn.Conv2d({{C}}, {_WIDTH}, «3, padding=1|1|5, padding=2|3, stride=2, padding=1|3|2, stride=2|3, padding=2, dilation=2|(1, 3), padding=(0, 1)», bias=«True|False»)]]({{x}})",)),
    Idiom("same conv", "4", 3, ("$y = [[nn.Conv2d({C}, {C}, «3, padding=1|1», bias=«True|False»)]]({x})",)),
    Idiom("odd padding", "4", 0.5, (f"$y = [[nn.Conv2d({{C}}, {_WIDTH}, 3, padding=«1, padding_mode='circular'|1, padding_mode='reflect'|'same'|'valid'|(1, 0)»)]]({{x}})",)),
    Idiom("pointwise", "4", 4, (f"$y = [[nn.Conv2d({{C}}, {_WIDTH}, 1, bias=«True|False»)]]({{x}})",)),
    Idiom("depthwise", "4", 5, ("$y = [[nn.Conv2d({C}, {C}, «3, padding=1|5, padding=2|7, padding=3|3, stride=2, padding=1|3, padding=2, dilation=2|3», groups={C}, bias=«True|False»)]]({x})",)),
    Idiom("depthwise residual", "4", 2, ("$y = {x} + [[nn.Conv2d({C}, {C}, «3|5», padding='same', groups={C})]](«{x}|[[nn.Conv2d({C}, {C}, 1)]]({x})|{x}.relu()»)",)),
    Idiom("multiplier", "4", 0.5, ("$y = [[nn.Conv2d({C}, {C} * 2, 3, padding=1, groups={C})]]({x})",)),
    Idiom("grouped conv", "4", 1, ("$y = [[nn.Conv2d({C}, «{C}|8|4», «3, padding=1|1», groups=«2|4»)]]({x})",), _EVEN),
    Idiom("inverted residual", "4", 1.5, (
        "$e = «F.relu6|F.silu|F.hardswish»([[nn.BatchNorm2d({C} * 2)]]([[nn.Conv2d({C}, {C} * 2, 1, bias=False)]]({x})))",
        "$e = F.relu6([[nn.Conv2d({C} * 2, {C} * 2, 3, padding=1, groups={C} * 2)]]($e))",
        "$y = {x} + [[nn.Conv2d({C} * 2, {C}, 1)]]($e)",
    )),
    Idiom("shared conv", "4", 1, ("$m = [[nn.Conv2d({C}, {C}, «3, padding=1|1»)]]", "$y = «$m($m({x}).relu())|$m({x}) + $m({x}.flip(3))|$m({x}) * $m({x})»")),
    Idiom("transposed conv", "4", 0.5, ("$y = [[nn.ConvTranspose2d({C}, «8|{C}», 2, stride=2)]]({x})",)),
    Idiom("batch norm", "4", 2, ("$y = [[nn.BatchNorm2d({C})]]({x})",)),
    Idiom("group norm", "4", 1, ("$y = [[nn.GroupNorm(«1|2|{C}», {C})]]({x})",)),
    Idiom("instance norm", "4", 0.3, ("$y = [[nn.InstanceNorm2d({C}, «affine=True|track_running_stats=True»)]]({x})",)),
    Idiom("channels-last norm", "4", 3, ("$y = [[nn.LayerNorm({C})]]({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)",)),
    Idiom("ConvNeXt block", "4", 1, (
        "$e = [[nn.LayerNorm({C})]]([[nn.Conv2d({C}, {C}, 7, padding=3, groups={C})]]({x}).permute(0, 2, 3, 1))",
        "$e = [[nn.Linear({C} * 2, {C})]](F.gelu([[nn.Linear({C}, {C} * 2)]]($e)))",
        "$y = {x} + «$e|[[nn.Parameter(torch.ones({C}))]] * $e».permute(0, 3, 1, 2)",
    )),
    Idiom("squeeze and excite", "4", 2, (
        "$s = {x}.mean((2, 3), keepdim=True)",
        "$s = [[nn.Conv2d(«r:8|4|1», {C}, 1)]](F.«relu|silu»([[nn.Conv2d({C}, «r», 1)]]($s)))",
        "$y = {x} * «$s.sigmoid()|F.hardsigmoid($s)»",
    )),
    Idiom("linear squeeze and excite", "4", 1, (
        "$s = «{x}.mean((2, 3))|F.adaptive_avg_pool2d({x}, 1).flatten(1)|{x}.flatten(2).mean(-1)»",
        "$s = [[nn.Linear(«r:8|4|1», {C})]]([[nn.Linear({C}, «r»)]]($s).relu()).sigmoid()",
        "$y = {x} * $s«[:, :, None, None]|.view({x}.shape[0], {C}, 1, 1)|.unsqueeze(-1).unsqueeze(-1)»",
    )),
    Idiom("pool", "4", 2, ("$y = «F.max_pool2d({x}, 2)|F.avg_pool2d({x}, 2)|F.max_pool2d({x}, 3, 2, 1)|F.avg_pool2d({x}, 3, 1, 1)|F.avg_pool2d({x}, 3, 1, 1, count_include_pad=False)|F.max_pool2d({x}, 2, ceil_mode=True)|F.adaptive_avg_pool2d({x}, 2)|F.adaptive_max_pool2d({x}, 2)»",)),
    Idiom("maps without batch", "4", 1.5, ("$y = «F.max_pool2d|F.avg_pool2d»({x}.«flatten(0, 1)|reshape(-1, {H}, {W})|view({N} * {C}, {H}, {W})», «2|3, 1, 1|3, 2, 1|(2, 1)»)«|.unflatten(0, (-1, {C}))»",)),
    Idiom("one map", "4", 0.7, ("$y = «F.max_pool2d({x}[0], 2)|[[nn.Conv2d({C}, 8, 3, padding=1)]]({x}[0])|torch.stack([F.max_pool2d(each, 3, 1, 1) for each in {x}])|torch.stack([[[nn.Conv2d({C}, 8, 1)]](each) for each in {x}.unbind(0)])»",)),
    Idiom("pool to a pixel", "4", 2, ("$y = «F.adaptive_avg_pool2d({x}, 1)|F.adaptive_max_pool2d({x}, 1)|{x}.mean((2, 3), keepdim=True)|{x}.mean((-1, -2), True)|{x}.amax((2, 3), keepdim=True)|F.avg_pool2d({x}, ({H}, {W}))»",)),
    Idiom("pool to a vector", "4", 2, ("$y = «{x}.mean((2, 3))|F.adaptive_avg_pool2d({x}, 1).flatten(1)|F.adaptive_avg_pool2d({x}, 1).squeeze(-1).squeeze(-1)|F.adaptive_avg_pool2d({x}, 1)[:, :, 0, 0]|{x}.amax((2, 3))|{x}.mean(3).mean(2)|{x}.flatten(2).mean(2)|F.adaptive_avg_pool2d({x}, 1).squeeze()|{x}.sum((2, 3))»",)),
    Idiom("upsample", "4", 1, ("$y = F.interpolate({x}, scale_factor=2, mode=«'nearest'|'bilinear'|'bilinear', align_corners=True»)",), "x.shape[2] < 17"),
    Idiom("pixel shuffle", "4", 0.5, ("$y = «F.pixel_unshuffle({x}, 2)|F.pixel_shuffle({x}, 2)|F.channel_shuffle({x}, 2)»",)),
    Idiom("pad", "4", 1, ("$y = F.pad({x}, «(1, 1, 1, 1)|(0, 1, 0, 1)|(1, 0, 0, 0)|(1, 1, 1, 1), mode='reflect'|(0, 0, 0, 0, 0, 1)|(-1, 0, 0, 0)»)",)),
    Idiom("map classifier", "4", 1.5, ("$y = [[nn.Linear({C}, «5|10|1»)]](«{x}.mean((2, 3))|F.adaptive_avg_pool2d({x}, 1).flatten(1)|F.adaptive_avg_pool2d({x}, 1).squeeze(-1).squeeze(-1)»)",)),
    Idiom("patches to tokens", "4", 3, ("$y = «{x}.flatten(2).transpose(1, 2)|{x}.permute(0, 2, 3, 1).flatten(1, 2)|{x}.reshape({x}.shape[0], {C}, -1).permute(0, 2, 1)|[[nn.Conv2d({C}, 16, 2, stride=2)]]({x}).flatten(2).mT|{x}.permute(0, 2, 3, 1).reshape({N}, -1, {C})»",)),
    Idiom("linear over channels", "4", 2, ("$y = [[nn.Linear({C}, «{C}|8»)]]({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)",)),
    Idiom("linear over width", "4", 0.5, ("$y = [[nn.Linear({W}, «{W}|8»)]]({x})",)),
    Idiom("windows", "4", 1, ("$y = {x}.reshape({N}, {C}, {H} // 2, 2, {W} // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, {C})",), "x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0"),
    Idiom("shift", "4", 0.5, ("$y = {x}.roll(«(1, 1), (2, 3)|1, 3|-1, 1»)",)),
    Idiom("flatten classifier", "4", 1.5, ("$y = [[nn.Linear({C} * {H} * {W}, 5)]]({x}«.flatten(1)|.reshape({x}.shape[0], -1)|.permute(0, 2, 3, 1).flatten(1)|.view({N}, -1)»)",), "x[0].numel() <= 2048"),
    Idiom("attention over pixels", "4", 1, (
        "$t = {x}.flatten(2).transpose(1, 2)",
        "$a, $b = [[nn.MultiheadAttention({C}, «1|2|4», batch_first=True)]]($t, $t, $t)",
        "$y = {x} + $a.transpose(1, 2).reshape({x}.shape)",
    ), "x.shape[2] * x.shape[3] < 100"),
)  # fmt: skip
