def test_threads():
    import torch, os; print("THREADS", torch.get_num_threads()); assert torch.get_num_threads()==1, os.environ.get("OMP_NUM_THREADS")
