"""The server: `llorch serve`. Needs the packages of llorch[serve]; imports nothing by itself."""
