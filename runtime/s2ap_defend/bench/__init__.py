"""What a defended file costs on this machine, in multiples of its bare classifier and of what the hardware allows."""
