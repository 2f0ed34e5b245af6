"""Small jobs, run in this process with the fake engine."""

from job.conftest import fake_engine as fake_engine
from job.conftest import job as job
from job.conftest import real_engine as real_engine
from job.conftest import small as small
from job.conftest import tmp_path as tmp_path
