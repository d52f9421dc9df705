"""Members of the ensemble that votes on whether the classifier was fooled: structurally pruned copies of it."""

from s2ap_train.ensemble.channel_choice import largest_channels, random_channels
from s2ap_train.ensemble.channel_member import ChannelMember, ChannelPruning, channel_member

__all__ = ["ChannelMember", "ChannelPruning", "channel_member", "largest_channels", "random_channels"]
