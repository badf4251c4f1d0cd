"""What keeps an archive right after the transfer: verify, copy, orphans, reconcile, rebuild."""
