"""The command `s2ap-defend`; the commands of training and export join it through entry points."""
