"""The paper's comparison of systems: what to run, what came out, and the page that shows it."""
