"""What can go wrong, in words for the person who watches the runs: the cause, then the next step."""


class BillingError(Exception):
    """Anything this product refuses or could not finish; its message says the cause and the operator's next step."""


class OperatorNeeded(BillingError):
    """Trying again by itself cannot help: somebody has to change something first."""


class BadWindow(OperatorNeeded):
    """The run does not name exactly one UTC hour."""


class WindowStillOpen(OperatorNeeded):
    """The hour has not ended, so its usage is not complete."""


class LedgerNotReady(OperatorNeeded):
    """The database holds no ledger, one of an older migration, or a copy that must not be billed from."""


class RestoredDatabase(LedgerNotReady):
    """The database is an older or a second copy of the one that was billed from, or lies in another cluster."""


class KeptMarkLost(BillingError):
    """What is kept outside the database is not what was written there; nothing was sent."""


class NothingToRecover(OperatorNeeded):
    """The database is the one that was billed from last."""


class CannotRecover(OperatorNeeded):
    """It cannot be told which rows of the restored database were billed."""


class WrongStripeAccount(OperatorNeeded):
    """The connection leads to another Stripe account or mode than the ledger is pinned to."""


class UnsafeStripeTarget(OperatorNeeded):
    """A live key in the sandbox or beside a host that is not Stripe's, or a sandbox pointed at the outside world."""


class StripeRefusesKey(OperatorNeeded):
    """Stripe answered that the secret key is wrong or may not do this."""


class WrongSink(OperatorNeeded):
    """The account, or the price of a subscription item, is billed by the other sink than the one that is set; nothing was lost by it."""


class StripeUnavailable(BillingError):
    """Stripe could not be reached, or answered nothing usable; a later try may succeed."""


class ReportsLeftOver(BillingError):
    """Some reports of the window have no accepted answer yet; what is accepted stays accepted, a later try sends the rest."""


class SendingPaused(BillingError):
    """Somebody paused all sending: nothing was sent, and nothing is lost by waiting."""


class DecisionRefused(OperatorNeeded):
    """The report is not held, or somebody has decided about it already."""


class PauseRefused(OperatorNeeded):
    """Sending is paused already, or is not paused."""


class ReportsDisagree(OperatorNeeded):
    """Rows changed or vanished after they were frozen: the report and its rows no longer agree."""


class NotRevocable(OperatorNeeded):
    """The report is not one that Stripe has accepted, or not surely under that identifier."""


class SurplusAtStripe(OperatorNeeded):
    """Stripe counts events of ours beside the ones that count, and they can no longer be cancelled."""


class ConservationBroken(OperatorNeeded):
    """The tokens of the rows are not the sum of what is billed, pending and quarantined."""


class BadEvent(BillingError):
    """What came is no event of Stripe's, or not one that can be understood."""


class BadSignature(BillingError):
    """What came was not signed by Stripe, with a secret that is known here and at about this time."""


class NoWebhookSecret(OperatorNeeded):
    """No signing secret is configured, so nothing that comes can be believed."""


class EventsNotListed(OperatorNeeded):
    """Stripe does not show its list of events to this key."""


class InvoicesNotListed(OperatorNeeded):
    """Stripe does not show its list of invoices to this key."""


class FactsUnknown(OperatorNeeded):
    """It is not known yet which subscriptions began, changed or ended up to the window's end."""


class NoSuchDiscrepancy(OperatorNeeded):
    """The discrepancy does not exist, or is resolved already."""


class NoSuchStatement(OperatorNeeded):
    """The statement does not exist."""


class MetersNotTold(OperatorNeeded):
    """Stripe does not tell what some customers' meters hold, so that their usage cannot be confirmed."""


class DiscrepanciesFound(OperatorNeeded):
    """Our books and Stripe's differ by more than the tolerance, and nobody has dealt with it."""


class PeriodsIncomplete(OperatorNeeded):
    """Drafts had to be, or are about to be, finalised without all usage of their periods."""


class ProposalRefused(OperatorNeeded):
    """The proposal does not exist, is decided already, or cannot be carried out as it was decided."""


class NothingToExplain(OperatorNeeded):
    """No invoice line, report or row of this ledger goes by that name."""


class ExclusionRefused(OperatorNeeded):
    """The tenant is excluded at that time already, or is not excluded."""


class CatalogueRefused(OperatorNeeded):
    """A price that a setting names, or what Stripe holds, is not what the catalogue says; set-up went no further."""


class WebhookSecretUnknown(OperatorNeeded):
    """Stripe shows a webhook endpoint's signing secret once, and nobody here kept it."""


class ReleaseRefused(OperatorNeeded):
    """A report is not quarantined, or its cause stands, or it was settled otherwise, or it may have been sent after all."""
