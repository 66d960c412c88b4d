ALTER TABLE person ADD COLUMN full_name TEXT;
