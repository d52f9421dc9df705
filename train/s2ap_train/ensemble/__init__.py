"""Members of the ensemble that votes on whether the classifier was fooled: families, and how each is trained."""

from s2ap_train.ensemble.channel_families import (
    ChannelFamily,
    ChannelMember,
    ChannelPruning,
    channel_member,
    largest_channels,
    random_channels,
)
from s2ap_train.ensemble.cost import check_cost
from s2ap_train.ensemble.families import FAMILIES, Family
from s2ap_train.ensemble.family import Base, Fitted, MemberFamily
from s2ap_train.ensemble.jury import Jury, train_on_together
from s2ap_train.ensemble.lottery_ticket import LotteryTicket, LotteryTicketFamily, Ticket, lottery_ticket
from s2ap_train.ensemble.mutation import Mutant, Mutation, MutationFamily, mutant, mutate
from s2ap_train.ensemble.pruned import PrunedFamily, Pruning, fit_pruned

__all__ = [
    "FAMILIES",
    "Base",
    "ChannelFamily",
    "ChannelMember",
    "ChannelPruning",
    "Family",
    "Fitted",
    "Jury",
    "LotteryTicket",
    "LotteryTicketFamily",
    "MemberFamily",
    "Mutant",
    "Mutation",
    "MutationFamily",
    "PrunedFamily",
    "Pruning",
    "Ticket",
    "channel_member",
    "check_cost",
    "fit_pruned",
    "largest_channels",
    "lottery_ticket",
    "mutant",
    "mutate",
    "random_channels",
    "train_on_together",
]
