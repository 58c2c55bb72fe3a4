"""What is known of public benchmarks: their data, protocol and published figures; see fakedet.evaluation.benchmark."""
