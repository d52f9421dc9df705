"""Members of the ensemble that votes on whether the classifier was fooled: structurally pruned copies of it."""

from s2ap_train.ensemble.channel_member import ChannelMember
from s2ap_train.ensemble.l1_norm import L1Norm, l1_norm_member
from s2ap_train.ensemble.random_channel import RandomChannel, random_channel_member

__all__ = ["ChannelMember", "L1Norm", "RandomChannel", "l1_norm_member", "random_channel_member"]
