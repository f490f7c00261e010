"""The parts of peers.py.

``work`` (what is asked, what must come back) and ``aims`` (what is judged) are pure; ``models`` are
behind the teachers; ``pipelines`` are the ways to a model, each of which runs in a ``process`` of
its own; ``students`` are these processes as peers.py sees them; ``environments`` have the Pythons.
"""
