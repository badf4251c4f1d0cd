"""The algorithm: from a recorder's list to copies in the stores. The life of a recording, each step with its function:

1. Windows of time that are not covered are planned and listed: ``poll.poll``, ``poll.listed``.
2. Rows, and the mark that their window was listed, are saved together: ``record.record``.
3. Sources with a cursor or with ids only are followed and looked up: ``lookups.follow``, ``lookups.look_up``.
4. What is due is claimed, and what may begin is chosen: ``engine.Engine``, ``lane.Lane.next_claims``.
5. The bytes are downloaded, hashed on the way: ``transfer.transfer``, ``transfer.obtain``.
6. They are checked as audio and against what the source says of them: ``check.checked``, ``check.accept``.
7. They are put into each store: ``transfer.deliver``.
8. A manifest in each store describes them, then the catalog counts them as archived: ``commit.commit``.
9. What went wrong has one place that decides what follows: ``failures.explain``; what heals: ``failures.heal``.
10. Later changes and ledgers are written into the stores: ``commit.describe_changes``, ``commit.write_ledgers``.
"""
