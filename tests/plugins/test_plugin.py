"""How Airflow loads the project's plugin."""

from __future__ import annotations

import json
import subprocess
import sys


def test_airflow_loads_one_plugin_without_errors_and_nothing_heavy_with_it(private_airflow):
    code = """
import json, sys
import airflow.plugins_manager as manager
from airflow.listeners.listener import get_listener_manager
before = set(sys.modules)
plugins, errors = manager._get_plugins()
listeners = [listener.__name__ for listener in get_listener_manager().pm.get_plugins()]
print("ANSWER", json.dumps({
    "plugins": [plugin.name for plugin in plugins if "token_billing" in str(plugin.source)],
    "errors": errors,
    "listeners": listeners,
    "run_as_plugins": sorted({"alerts", "alert_listener", "alert_delivery"} & set(sys.modules)),
    "heavy": sorted({"apprise", "fastapi", "pandas", "psycopg_pool", "stripe"} & (set(sys.modules) - before)),
}))
"""
    ended = subprocess.run([sys.executable, "-c", code], env=private_airflow.environ, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout.split("ANSWER ")[1])
    assert answer == {
        "plugins": ["token_billing"],
        "errors": {},
        "listeners": ["billing_airflow.alert_listener"],
        # plugins/.airflowignore keeps the plugin manager from executing the package's modules one by one.
        "run_as_plugins": [],
        "heavy": [],
    }
