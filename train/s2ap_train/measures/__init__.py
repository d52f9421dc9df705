"""What is measured of a pruned network: stability, sensitivity, quantisation, transfer of attacks, before and after."""
