"""How the product is set in the months."""

from token_billing.settings import PushSettings

#: Fast enough to be no subject here, and leases that outlast every run.
SETTINGS = PushSettings(calls_per_second=5000, reads_per_second=5000, concurrency=8, tries=2, backoff_s=0.001)
