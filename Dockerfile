# The image of every Airflow service in docker-compose.yaml: Airflow's own, brought to the versions that are tested here.
#
# slim: without the dozens of providers that this project does not use and whose own requirements disagree with our lock.
# The pins of Airflow and Python are those of requirements.txt; tests/deployment compares them.
FROM apache/airflow:slim-3.3.2-python3.11

# First, so that a change of a DAG does not install everything again. Every file is checked against its hash.
COPY requirements.txt /opt/airflow/requirements.txt
RUN pip install --no-cache-dir --require-hashes -r /opt/airflow/requirements.txt

COPY --chown=airflow:root dags /opt/airflow/dags
COPY --chown=airflow:root plugins /opt/airflow/plugins
# Only the product: include/sandbox stands in for production on one machine and has no business in it.
COPY --chown=airflow:root include/token_billing /opt/airflow/include/token_billing

# include/ is a source root: `from token_billing.stages import push`.
ENV PYTHONPATH=/opt/airflow/include:/opt/airflow/plugins

# An image that cannot even import its own parts is found here and not by the first run.
RUN python -c "import token_billing, stripe, apprise, airflow.providers.celery, airflow.providers.fab, airflow.providers.postgres"
