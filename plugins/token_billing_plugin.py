"""Registers with Airflow everything that runs inside its servers and workers; holds no behaviour of its own."""

from __future__ import annotations

from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin

from billing_airflow import alert_listener
from billing_airflow.served_apps import EXTERNAL_VIEWS, FASTAPI_APPS, FASTAPI_ROOT_MIDDLEWARES


class TokenBillingPlugin(AirflowPlugin):
    """The project's one plugin."""

    name = "token_billing"
    listeners: ClassVar[list[object]] = [alert_listener]
    fastapi_apps: ClassVar[list[object]] = FASTAPI_APPS
    external_views: ClassVar[list[object]] = EXTERNAL_VIEWS
    fastapi_root_middlewares: ClassVar[list[object]] = FASTAPI_ROOT_MIDDLEWARES
