"""The dashboard: pages, a JSON API, live updates; all read from the store of one root.

`app` puts it together. `source` follows the store; `api/` answers in JSON, one file a resource, and is what the pages
themselves use; `events` streams changes; `security` controls access; `templates/` and `static/` are the
pages.
"""
