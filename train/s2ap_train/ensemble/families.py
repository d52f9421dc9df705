"""All families of members by the name that a recipe calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, get_args

from pydantic import Field

from s2ap_train.ensemble.channel_families import ChannelFamily
from s2ap_train.ensemble.family import MemberFamily
from s2ap_train.ensemble.lottery_ticket import LotteryTicketFamily
from s2ap_train.ensemble.mutation import MutationFamily
from s2ap_train.ensemble.pruned import PrunedFamily

Family = Annotated[PrunedFamily | ChannelFamily | LotteryTicketFamily | MutationFamily, Field(discriminator="family")]
"""The closed set of families; each is the table of a recipe that holds its settings."""

FAMILIES: Mapping[str, type[MemberFamily]] = {
    name: family
    for family in get_args(get_args(Family)[0])
    for name in get_args(family.model_fields["family"].annotation)
}
"""How a recipe names them."""
