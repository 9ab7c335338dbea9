"""Which mixture of the domains next, at which size? Mathematics on arrays: no study, no ledger, no torch in here."""
