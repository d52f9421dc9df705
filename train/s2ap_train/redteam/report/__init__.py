"""How an evaluation is shown: console, JSON, page, badge."""
