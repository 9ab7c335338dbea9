"""The run table in SQL: SQLite embedded, PostgreSQL by URL. Light to import: pandas and pyarrow come with their use."""

from foretune.ledger.lease import Lease, LeaseLost
from foretune.ledger.recording import Recorded
from foretune.ledger.store import Conflict, Failure, Ledger, Registered, open_ledger

__all__ = ["Conflict", "Failure", "Lease", "LeaseLost", "Ledger", "Recorded", "Registered", "open_ledger"]
