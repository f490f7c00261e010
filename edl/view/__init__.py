"""Who waits for whom, at a glance: what ``edl ls``, ``edl top`` and ``edl dashboard`` show.

``registry`` says who is there; ``scrape`` asks them for their figures, ``figures`` makes rates of
these; ``snapshot`` joins both, ``advice`` says in words what follows, ``history`` keeps the last
hour. ``observer`` runs all of it once a second, for ``terminal`` and ``web``.

Anybody may write to a registry, and say anything on a port: texts are cut and cleaned, numbers
checked, and every question has limits of time and size.
"""
