"""Aggregation rules: how a server makes one shared state of many client updates, some of them perhaps Byzantine.

A rule is a public function of keyword options that returns an `AggregationRule`; a recipe's [train.server.aggregate]
names it. To add one, write such a function in a file of this package. Without a rule the server takes the average of
`fedprompt.updates.fedavg`, which the rule `fedavg` gives too.
"""
