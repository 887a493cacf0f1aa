"""The table of all idioms: a new one is one entry."""

from tests.fuzz.maps import MAPS
from tests.fuzz.tokens import TOKENS
from tests.fuzz.views import VIEWS

ALL = (*MAPS, *TOKENS, *VIEWS)
IDIOMS = {idiom.name: idiom for idiom in ALL}
