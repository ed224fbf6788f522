"""The page in the browser and its JSON API, for any source of `tfreid.search`. Floor 5."""
