"""Shapes in the maths are checked while testing; this must come before anything imports nonpareil."""

import jaxtyping

jaxtyping.install_import_hook("nonpareil.maths", "beartype.beartype")
