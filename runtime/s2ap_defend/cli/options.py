"""Options that several commands share."""

from typing import get_args

import click

from s2ap_defend.engines import Device

device_option = click.option(
    "--device",
    type=click.Choice(get_args(Device)),
    default="auto",
    show_default=True,
    help="Where to run; 'auto' takes a CUDA device when there is one.",
)
