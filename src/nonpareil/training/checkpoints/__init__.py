"""Checkpoints: whole or not there (`files`, `saving`), in a folder held by one training (`output_folder`), and gone
on from by the same training alone (`resume`, `identity`).
"""
