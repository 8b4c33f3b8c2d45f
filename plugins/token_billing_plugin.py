"""Registers with Airflow everything that runs inside its servers and workers; holds no behaviour of its own."""

from __future__ import annotations

from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin

from billing_airflow import alert_listener


class TokenBillingPlugin(AirflowPlugin):
    """The project's one plugin."""

    name = "token_billing"
    listeners: ClassVar[list[object]] = [alert_listener]
