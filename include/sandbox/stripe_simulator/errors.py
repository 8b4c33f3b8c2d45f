"""Stripe's refusals, worded as Stripe words them: every error the simulator answers is built here.

Sources: Stripe's error codes page (which codes exist), and messages quoted in public issue trackers. Where the wording of a
message has no public witness the docstring says "unverified".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class StripeError(Exception):
    """A refusal with Stripe's status, type, code, parameter and message.

    `is_kept` says whether an idempotency key remembers the answer: Stripe keeps whatever an endpoint answered once it began to
    execute, and keeps nothing when the parameters failed validation, the key was refused, or the request was turned away (401, 409, 429).
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        error_type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        is_kept: bool = True,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.error_type = error_type
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.is_kept = is_kept

    def body(self) -> dict[str, Any]:
        """The JSON body: `{"error": {…}}`, without the members that do not apply."""
        error: dict[str, Any] = {}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        error["message"] = self.message
        if self.param is not None:
            error["param"] = self.param
        error["type"] = self.error_type
        return {"error": error}


# --- Who is asking ------------------------------------------------------------------------------------------------------------


def no_api_key() -> StripeError:
    return StripeError(
        "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer auth (e.g. "
        "'Authorization: Bearer YOUR_SECRET_KEY'). See https://stripe.com/docs/api#authentication for details, or we can help at "
        "https://support.stripe.com/.",
        status=401,
        is_kept=False,
    )


def invalid_api_key(key: str) -> StripeError:
    """Shows the key's kind (`sk_test_`) and last four characters, never the rest."""
    kind_end = key.find("_", 3) + 1 if key.startswith(("sk_", "rk_", "pk_")) else 0
    hidden = key[kind_end:]
    masked = key[:kind_end] + "*" * max(len(hidden) - 4, 4) + (hidden[-4:] if len(hidden) > 8 else "")
    return StripeError(f"Invalid API Key provided: {masked}", status=401, is_kept=False)


def unsupported_api_version(version: str, spoken: str) -> StripeError:
    return StripeError(f"Invalid Stripe API version: {version}. This simulator speaks {spoken} only.", is_kept=False)


# --- Where ------------------------------------------------------------------------------------------------------------------


def unrecognized_url(method: str, path: str) -> StripeError:
    return StripeError(
        f"Unrecognized request URL ({method}: {path}). If you are trying to list objects, remove the trailing slash. If you are "
        "trying to retrieve an object, make sure you passed a valid (non-empty) identifier in your code. Please see "
        "https://stripe.com/docs or we can help at https://support.stripe.com/.",
        status=404,
        is_kept=False,
    )


# --- Parameters: none of these is kept under an idempotency key ---------------------------------------------------------------


def invalid_parameter(message: str, param: str, code: str | None = None) -> StripeError:
    return StripeError(message, code=code, param=param, is_kept=False)


def malformed_request() -> StripeError:
    return StripeError(
        "Invalid request (check that your POST content type is application/x-www-form-urlencoded). If you have questions, we can help "
        "at https://support.stripe.com/.",
        is_kept=False,
    )


def unknown_parameters(names: list[str]) -> StripeError:
    noun = "parameter" if len(names) == 1 else "parameters"
    return invalid_parameter(f"Received unknown {noun}: {', '.join(names)}", names[0], "parameter_unknown")


def missing_parameter(name: str) -> StripeError:
    return invalid_parameter(f"Missing required param: {name}.", name, "parameter_missing")


def empty_parameter(name: str) -> StripeError:
    return invalid_parameter(
        f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset a parameter; however '{name}' cannot "
        f"be unset. You should remove '{name}' from your request or supply a non-empty value.",
        name,
        "parameter_invalid_empty",
    )


def exclusive_parameters(first: str, second: str) -> StripeError:
    return invalid_parameter(f"You may only specify one of these parameters: {first}, {second}.", first, "parameters_exclusive")


# --- Objects ----------------------------------------------------------------------------------------------------------------


def no_such(noun: str, object_id: str, *, param: str = "id", in_path: bool = False) -> StripeError:
    """404 when the path names the object, 400 when a parameter does."""
    return StripeError(f"No such {noun}: '{object_id}'", status=404 if in_path else 400, code="resource_missing", param=param)


def refused(message: str, param: str | None = None, code: str | None = None) -> StripeError:
    """A 400 that the endpoint itself decided on; an idempotency key remembers it."""
    return StripeError(message, param=param, code=code)


def not_expandable(path: str) -> StripeError:
    return StripeError(f"This property cannot be expanded ({path}).", param="expand", is_kept=False)


# --- Meter events: these carry no code, only their wording tells them apart ----------------------------------------------------


def duplicate_meter_event(identifier: str) -> StripeError:
    """Seen in production (langfuse#16292), header included."""
    return StripeError(f"An event already exists with identifier {identifier}.", headers={"stripe-should-retry": "false"})


def meter_event_too_old(earliest_timestamp: int) -> StripeError:
    """Seen in production (theanswer#624)."""
    return StripeError(
        f"The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or equal to {earliest_timestamp}."
    )


def meter_event_in_future(latest_timestamp: int) -> StripeError:
    """Wording unverified, made after the one above."""
    return StripeError(
        f"The event timestamp cannot be more than 5 minutes in the future. Expected a timestamp less than or equal to {latest_timestamp}."
    )


def no_active_meter(event_name: str) -> StripeError:
    return StripeError(f'No active meter found for event name "{event_name}"')


# --- Thin events, which belong to Stripe's v2 API --------------------------------------------------------------------------------


class CoreError(StripeError):
    """A refusal in the shape of the v2 API: code and message, nothing else."""

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message}}


def core_event_not_found(event_id: str) -> CoreError:
    """Wording unverified."""
    return CoreError(f"No such event: '{event_id}'", status=404, code="not_found")


# --- Idempotency ------------------------------------------------------------------------------------------------------------


def idempotency_key_too_long(length: int) -> StripeError:
    """Wording unverified; the limit is documented."""
    return StripeError(f"The Idempotency-Key header must be at most 255 characters long, yours is {length}.", is_kept=False)


def idempotency_key_reused(key: str) -> StripeError:
    return StripeError(
        "Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other "
        f"than '{key}' if you meant to execute a different request.",
        error_type="idempotency_error",
        is_kept=False,
    )


def idempotency_key_in_use(key: str) -> StripeError:
    return StripeError(
        "There is currently another in-progress request using this Idempotent Key (that probably means you submitted twice, and the "
        f"other request is still going through): {key}. Please try again later.",
        status=409,
        code="idempotency_key_in_use",
        is_kept=False,
    )


# --- Load, and Stripe's own failures ------------------------------------------------------------------------------------------


def rate_limited(retry_after_seconds: int | None = None) -> StripeError:
    """Wording as seen in test mode (lukasaron/terraform-provider-stripe#40). Whether Stripe sends Retry-After is unverified."""
    headers = {"stripe-rate-limited-reason": "global-rate"}
    if retry_after_seconds is not None:
        headers["retry-after"] = str(retry_after_seconds)
    return StripeError(
        "Testmode request rate limit exceeded, the rate limits in testmode are lower than livemode. You can learn more about rate "
        "limits here https://stripe.com/docs/rate-limits.",
        status=429,
        code="rate_limit",
        headers=headers,
        is_kept=False,
    )


def lock_timed_out() -> StripeError:
    """Documented: https://docs.stripe.com/rate-limits#object-lock-timeouts, also that SDKs try these 429s again.

    That a header tells them to is unverified.
    """
    return StripeError(
        "This object cannot be accessed right now because another API request or Stripe process is currently accessing it. If you see "
        "this error intermittently, retry the request. If you see this error frequently and are making multiple concurrent requests to "
        "a single object, make your requests serially or at a lower rate.",
        status=429,
        code="lock_timeout",
        headers={"stripe-should-retry": "true"},
        is_kept=False,
    )


def unexpected() -> StripeError:
    return StripeError("An unexpected error occurred. Please contact us at support@stripe.com.", status=500, error_type="api_error")
