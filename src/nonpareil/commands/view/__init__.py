"""`nonpareil view`: pages over stored groups and training runs, on this machine or to be sent."""
