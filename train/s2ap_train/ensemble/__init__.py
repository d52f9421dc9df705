"""Members of the ensemble that votes on whether the classifier was fooled: families, and how each is trained."""

from s2ap_train.ensemble.channel_choice import largest_channels, random_channels
from s2ap_train.ensemble.channel_families import ChannelFamily
from s2ap_train.ensemble.channel_member import ChannelMember, ChannelPruning, channel_member
from s2ap_train.ensemble.families import FAMILIES, Family
from s2ap_train.ensemble.family import Base, Fitted, MemberFamily, ModelTable, TrainingData
from s2ap_train.ensemble.lottery_ticket import LotteryTicket, LotteryTicketFamily, Ticket, lottery_ticket
from s2ap_train.ensemble.mutation import Mutant, Mutation, mutant, mutate
from s2ap_train.ensemble.mutation_family import MutationFamily
from s2ap_train.ensemble.pruned import PrunedFamily, Pruning, fit_pruned

__all__ = [
    "FAMILIES",
    "Base",
    "ChannelFamily",
    "ChannelMember",
    "ChannelPruning",
    "Family",
    "Fitted",
    "LotteryTicket",
    "LotteryTicketFamily",
    "MemberFamily",
    "ModelTable",
    "Mutant",
    "Mutation",
    "MutationFamily",
    "PrunedFamily",
    "Pruning",
    "Ticket",
    "TrainingData",
    "channel_member",
    "fit_pruned",
    "largest_channels",
    "lottery_ticket",
    "mutant",
    "mutate",
    "random_channels",
]
