"""Which version of Stripe's API this code speaks."""

import stripe

#: The one that the SDK is pinned to; objects come in its shapes, whatever the account's default is.
API_VERSION: str = stripe.api_version
