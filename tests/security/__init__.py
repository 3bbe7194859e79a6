"""What keeps strangers out, and tenants apart: a test for each row S of docs/reliability.md."""
