"""Composer: no release can be installed beside the torch of this environment (see the message)."""

raise ImportError("Composer 0.32.1, the newest, needs torch<2.7.1")
