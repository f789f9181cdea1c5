"""The interactive demo: a page on loopback, and the live sessions that it steers."""
