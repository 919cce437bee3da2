"""``svd-serve doctor``: what is wrong with a service, and what to do about it.

    configuration, environment ──▶ Case ──▶ checks, each in its time ──▶ findings: ok, warn or FAIL, with advice

    findings.py      what a check finds; how checks are kept from hanging
    store.py         the database, and the queue in it
    surroundings.py  configuration, keys, file storage, disk space, weights, ffmpeg
    service.py       the service under its public address

Nothing is repaired, migrated or made here, but for probes that are removed at once. No secret is shown.
"""

from deployments.doctor.examination import examine

__all__ = ["examine"]
