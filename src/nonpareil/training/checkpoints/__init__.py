"""Checkpoints: whole or absent, and taken up by the same training alone.

`files` knows a checkpoint again by its list; `saving` writes policy, anchor and optimizer; `output_folder` holds
the folder for one training; `identity` is what a training is, and `resume` finds the checkpoint to go on from.
"""
