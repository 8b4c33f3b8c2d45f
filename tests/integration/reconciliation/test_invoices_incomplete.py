"""An invoice that was finalised without all usage of its period is told of until somebody deals with it, whatever its lines say."""

from datetime import timedelta

from invoiced_shop import InvoicedShop
from token_billing.settings import ReconcileSettings
from token_billing.stages.close_billing_periods import hold_and_release
from world import SETTINGS, World


def test_a_comparison_of_its_lines_settles_no_alert_about_an_incomplete_invoice(world: World) -> None:
    """What one finds is not the other's to find again."""
    shop = InvoicedShop.opened(world)
    shop.subscribe(a="pure")
    shop.use(("a", 1_000_000))

    def close(after: timedelta) -> None:
        shop.at(shop.period_end + after)
        hold_and_release(world.connect, world.target, world.clock, SETTINGS, ReconcileSettings())

    close(timedelta(minutes=5))  # the usage is accepted, and was never seen in Stripe's summaries
    shop.client.invoices.finalize_invoice(shop.invoice("a").id)
    close(timedelta(minutes=15))
    shop.sync()
    shop.compare()
    assert ["period_incomplete"] in shop.found().values()
